"""What all layers share. Nothing here knows of metrics."""

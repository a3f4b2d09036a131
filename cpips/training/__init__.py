"""Training from people's opinions: labels, an encoder tied over quarter turns, and the losses."""

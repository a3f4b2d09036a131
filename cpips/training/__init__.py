"""What makes the shipped weights: training of codecs, calibration to people, tuning of decoders, releases."""

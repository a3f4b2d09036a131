"""Training of codecs, calibration to human ratings, fine-tuning of decoders, and releases."""

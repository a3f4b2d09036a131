"""The codec that the metric's encoders come from. Needs the extra ``codec`` (CompressAI)."""

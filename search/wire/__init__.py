"""The wire: quantizers, context models and tails that fit them."""

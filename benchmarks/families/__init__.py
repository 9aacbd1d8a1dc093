"""Which families of transformers train and sample here: each is tried as a tiny random model."""

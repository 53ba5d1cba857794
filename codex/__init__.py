"""Code instead of chat: whether a model's programs pass tests (Chen et al. 2021, 2107.03374)."""

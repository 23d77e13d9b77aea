"""lmjax: language-model pretraining in JAX, where a run is a pure function of (config, seed, journal)."""

__version__ = "0.1.0"

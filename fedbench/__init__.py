"""fedbench compares federated prompt tuning methods for Vision Transformers on exactly the same footing."""

__version__ = "0.1.0"

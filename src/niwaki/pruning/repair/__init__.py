"""What makes up for removed units: closed forms without training, and fine-tuning."""

"""Fine-tuning networks on masks: annotated ones, or label maps that a method has made."""

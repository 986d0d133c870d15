"""What a distillation run costs: the seed's own way and its likely improvements against LLM-Neo, on one machine."""

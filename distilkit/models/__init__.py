"""The backbones: plain networks that know nothing of distillation, one file per family."""

"""What happens, in real time: the only folder that may import torch and transformers."""

"""Denoising diffusion policy optimization (DDPO; Black et al. 2023, arXiv 2305.13301) and the folder that a run lives in."""

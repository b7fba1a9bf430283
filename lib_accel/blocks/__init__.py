"""The blocks of a diffusion model, each kind written once as a pure function of activations and weights."""

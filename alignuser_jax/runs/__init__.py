"""An experiment, its run folder, its stages, its back end and its simulations."""

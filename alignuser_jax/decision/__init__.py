"""Turn tables of simulated users into a verdict about recommenders."""

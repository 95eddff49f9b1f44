"""Client routes by dialect: from a path to an operation of the pipeline."""

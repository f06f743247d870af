"""LIBERO-plus: LIBERO's four suites under seven categories of perturbation, read from the files of its package."""

"""A loaded model that answers a person: one process for each model, which gives way to trainings."""

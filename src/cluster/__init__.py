"""Trainings carried out by a Ray cluster. Nothing else of the product imports Ray, and only the command lines come here."""

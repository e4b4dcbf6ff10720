"""Datasets, views, teachers and builds: the rooms where torch lives."""

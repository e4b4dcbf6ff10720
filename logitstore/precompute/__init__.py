"""Datasets, views, teachers and builds: the rooms where torch lives."""

from __future__ import annotations

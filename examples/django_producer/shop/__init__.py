"""A shop that sells pictures, and hands their task ids in to the harvester."""

from shop.celery import app as celery_app

__all__ = ("celery_app",)

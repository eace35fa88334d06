"""The channels of callbacks: webhooks and Celery replies."""

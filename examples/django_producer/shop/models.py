"""What the shop keeps. The row is there before the id is submitted, so no id can be forgotten."""

from django.db import models


class Picture(models.Model):
    """A ComfyUI task whose files the shop wants."""

    task_id = models.CharField(max_length=128, unique=True)
    state = models.CharField(max_length=16, default="waiting")
    run = models.PositiveIntegerField(default=0)
    files = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.task_id} ({self.state})"

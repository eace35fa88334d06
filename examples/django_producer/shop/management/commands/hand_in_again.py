"""``manage.py hand_in_again``, for cron: what no answer has come for is handed in again."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from shop import tasks
from shop.models import Picture


class Command(BaseCommand):
    """A message can be lost on its way. Ids that the harvester knows are left as they are."""

    help = "Hand in again what has been waiting for long."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """How long is long."""
        parser.add_argument("--minutes", type=float, default=10)

    def handle(self, *, minutes: float, **_: Any) -> None:
        """Send them all."""
        old = Picture.objects.filter(
            state="waiting", created_at__lt=timezone.now() - timedelta(minutes=minutes)
        )
        task_ids = list(old.values_list("task_id", flat=True))
        for start in range(0, len(task_ids), 1000):
            tasks.hand_in(task_ids[start : start + 1000])
        self.stdout.write(f"{len(task_ids)} submitted again")

"""Two views: hand a task in, look at it."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_POST

from shop import tasks
from shop.models import Picture


@require_POST
def hand_in(request: HttpRequest) -> JsonResponse:
    """Keep the id, and hand it in once that is committed.

    If the broker is down at that moment the row stays: ``manage.py hand_in_again`` finds it.
    """
    task_id = json.loads(request.body)["task_id"]
    Picture.objects.get_or_create(task_id=task_id)
    transaction.on_commit(lambda: tasks.hand_in([task_id]), robust=True)
    return JsonResponse({"task_id": task_id}, status=202)


@require_GET
def show(request: HttpRequest, task_id: str) -> JsonResponse:
    """What the shop knows of a task."""
    picture = get_object_or_404(Picture, task_id=task_id)
    return JsonResponse({"task_id": task_id, "state": picture.state, "files": picture.files})

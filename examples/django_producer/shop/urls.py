"""The shop's addresses."""

from django.urls import path

from shop import views

urlpatterns = [
    path("pictures", views.hand_in),
    path("pictures/<str:task_id>", views.show),
]

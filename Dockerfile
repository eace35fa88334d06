FROM python:3.13-slim

# EXTRAS=[sandbox] adds the upstream simulator and the embedded servers.
ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --create-home --uid 10001 harvester
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY worker ./worker
RUN pip install --no-cache-dir ".${EXTRAS}"

USER harvester
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker.app", "worker", "--loglevel=INFO"]

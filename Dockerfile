FROM python:3.11-slim-trixie AS build
WORKDIR /app
RUN python -m venv .venv
COPY requirements.lock ./
RUN .venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && .venv/bin/pip uninstall --yes setuptools pip

FROM python:3.11-slim-trixie
RUN pip uninstall --yes --root-user-action=ignore wheel setuptools pip \
    && groupadd --gid 10001 soundpost \
    && useradd --uid 10001 --gid soundpost --no-create-home --home-dir /app soundpost
WORKDIR /app
COPY --from=build /app ./
COPY alembic.ini ./
COPY migrations migrations
# A new volume takes its owner from the folder it covers.
RUN mkdir var && chown soundpost:soundpost var
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /app/var
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD python -c \
    "from http.client import HTTPConnection as H; c = H('127.0.0.1', 8000, 4); c.request('GET', '/livez'); \
    exit(c.getresponse().status != 200)"
ENTRYPOINT ["soundpost"]
CMD ["serve", "--host", "0.0.0.0"]

# icecore's server: the image of the gateways and of the store. Built from locked, hashed versions only.
# Pin the base by digest where your policy asks for it: --build-arg BASE=python:3.12.11-slim-bookworm@sha256:…
ARG BASE=python:3.12.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PYTHON=/usr/local/bin/python3
COPY requirements requirements
RUN python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.txt
RUN uv venv /opt/icecore
RUN uv pip install --python /opt/icecore/bin/python --require-hashes --only-binary :all: -r requirements/server.txt
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY sdk sdk
COPY ingest ingest
COPY projections projections
COPY api api
RUN uv build --wheel --require-hashes --build-constraint requirements/demo.txt --out-dir /dist .
RUN uv pip install --python /opt/icecore/bin/python --no-deps /dist/icecore-*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="icecore" org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 icecore \
 && useradd --system --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin icecore \
 && install -d -o 10001 -g 10001 -m 0700 /data \
 && python -m pip uninstall --yes --quiet --root-user-action ignore pip
COPY --from=build /opt/icecore /opt/icecore
ENV PATH=/opt/icecore/bin:/usr/local/bin:/usr/bin:/bin PYTHONUTF8=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    ICECORE_DATA=/data ICECORE_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8700 8701
# Gateways stop taking requests on SIGTERM and answer those in flight, within 10 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['ICECORE_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["icecore"]
CMD ["--help"]

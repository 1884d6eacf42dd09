# syntax=docker/dockerfile:1
# One image for CPU and GPU: the registry's torch includes the CUDA libraries.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src

# Install the libraries first, with empty packages, so that a change of our code keeps this layer.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN python <<'PYTHON'
import pathlib, tomllib
with open("pyproject.toml", "rb") as file:
    for package in tomllib.load(file)["tool"]["setuptools"]["packages"]:
        folder = pathlib.Path(package.replace(".", "/"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
PYTHON
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt '.[heic,label-studio-ml]'
# Install it without dependencies: see `install` in the Makefile.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps label-studio-ml==1.0.9

COPY backend backend
COPY model model
COPY vlsam vlsam
RUN pip install --no-deps --force-reinstall . && pip uninstall --yes pip setuptools


FROM python:3.11-slim
# Leave out all tools that install or build. The server writes only to /models and /tmp.
RUN useradd --create-home --uid 1000 vlsam && install --directory --owner=vlsam /models \
    && python -m pip uninstall --yes pip setuptools wheel
COPY --from=build /opt/venv /opt/venv
# Put fetched weights into the volume.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HOME=/models MODEL_DIR=/models
USER vlsam
WORKDIR /home/vlsam
VOLUME /models
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open('http://127.0.0.1:9090/health', timeout=2)"]
CMD ["vlsam", "serve", "--host", "0.0.0.0", "--port", "9090"]

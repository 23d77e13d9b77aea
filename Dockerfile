# lmjax in a container, for CPUs or NVIDIA GPUs.
#
#   docker build -t lmjax .                                   CPU
#   docker build --build-arg EXTRA=cuda -t lmjax-cuda .       NVIDIA: run it with --gpus all
#   docker run --rm -it -v "$PWD:/work" lmjax train quickstart
#
# Runs and prepared data are written below the mounted folder /work.
FROM python:3.12-slim

ARG EXTRA=""
WORKDIR /opt/lmjax
COPY pyproject.toml README.md LICENSE train.py ./
COPY lmjax lmjax
COPY configs configs
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"

ENV XDG_CACHE_HOME=/work/.cache PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["lmjax"]
CMD ["--help"]

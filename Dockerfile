# An image with core-agent, for the CPU:
#     docker build -t core-agent .
# With PyTorch's CUDA build, for NVIDIA GPUs:
#     docker build -t core-agent:cuda --build-arg TORCH_INDEX= .
# Its steps are those of the Makefile.
FROM debian:12-slim

# Where pip finds PyTorch's CPU build. Without it, pip gets PyTorch's default build, which has CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# MuJoCo renders off-screen with EGL: by Mesa, or by the driver of an NVIDIA GPU.
ENV MUJOCO_GL=egl \
    NVIDIA_DRIVER_CAPABILITIES=all \
    PATH=/opt/core-agent/.venv/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

# PyTorch is a layer of its own, which a change of the sources leaves as it is.
WORKDIR /opt/core-agent
COPY Makefile constraints.txt ./
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make .venv/constraints.txt

COPY . .
RUN PIP_NO_CACHE_DIR=1 make setup gl \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /data
ENTRYPOINT ["core-agent"]
CMD ["--help"]

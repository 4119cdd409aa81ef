# A machine that runs the main job: `docker build -t iot-defense . && docker run --rm -v "$PWD/artifacts:/home/defender/iot-defense/artifacts" iot-defense`.
# Another phase, or your own data: `docker run --rm -v /data/CICIoT2023:/data:ro iot-defense --phase all --set data.root=/data`.
FROM python:3.11-slim-bookworm

# The libraries' compiled parts want OpenMP.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home defender

USER 1000
WORKDIR /home/defender/iot-defense
ENV PATH=/home/defender/venv/bin:$PATH PYTHONUNBUFFERED=1

# The lock file has a hash for every package but torch, whose build for CPU or CUDA is the machine's choice.
COPY --chown=1000 requirements.txt requirements.lock ./
RUN python -m venv /home/defender/venv && pip install --no-cache-dir "$(grep ^torch== requirements.txt)" \
    && pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock

COPY --chown=1000 . .

ENTRYPOINT ["python", "main.py"]
CMD ["--phase", "all", "--preset", "quick"]

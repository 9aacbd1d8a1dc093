# docker build -t continual-harness . && docker run continual-harness
# Everything is installed, and the embedded model converted, when the image is built: it runs offline.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /harness
COPY Makefile requirements.txt requirements-data.txt ./
RUN make .venv/.installed
COPY . .
RUN make setup
CMD ["make", "taste"]

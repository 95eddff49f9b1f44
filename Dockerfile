# One image per service, and `up` with everything. `docker/build` builds them all; by hand:
#
#   docker build --target edge -t patchbay/edge .
#
# BASE_IMAGE   Python 3.11 or newer on glibc as `python3`, with venv; what the services run on
# BUILD_IMAGE  the same with what a build needs besides, say the CA of a proxy (docker/build --ca); nothing of it remains
#
# Packages come from hashed requirement files. Nothing at run time needs a shell, a home or root. Both of
# Docker's builders read this file, so it uses no feature of only one of them.
ARG BASE_IMAGE=python:3.12-slim-bookworm
ARG BUILD_IMAGE=${BASE_IMAGE}

# Tools and our own wheels -------------------------------------------------------------------------------------------
FROM ${BUILD_IMAGE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/dev.txt requirements/
COPY docker/pick.py docker/
RUN python3 -m venv /build \
 && python3 docker/pick.py requirements/dev.txt hatchling packaging pathspec pluggy trove-classifiers > build.txt \
 && /build/bin/pip install -q --no-deps --require-hashes -r build.txt

FROM tools AS wheels
COPY pyproject.toml README.md LICENSE ./
COPY services services
RUN /build/bin/pip wheel -q --no-deps --no-build-isolation -w /wheels ./services/sdk .
COPY operator operator
RUN /build/bin/pip wheel -q --no-deps --no-build-isolation -w /wheels-operator ./operator

# An environment for each service ------------------------------------------------------------------------------------
# pip stays outside: `--python` installs into an environment that has none. Ours come last, so that a change of them
# leaves the layers of the others as they are.
FROM tools AS edge-environment
COPY requirements/edge.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/edge.txt
COPY --from=wheels /wheels /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

FROM tools AS scheduler-environment
COPY requirements/scheduler.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/scheduler.txt
COPY --from=wheels /wheels /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

FROM tools AS executors-environment
COPY requirements/executors.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/executors.txt
COPY --from=wheels /wheels /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

FROM tools AS usage-environment
COPY requirements/usage.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/usage.txt
COPY --from=wheels /wheels /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

FROM tools AS up-environment
COPY requirements/up.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/up.txt
COPY --from=wheels /wheels /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

FROM tools AS operator-environment
COPY requirements/operator.txt requirements/
RUN python3 -m venv --without-pip /app \
 && /build/bin/pip --python /app/bin/python3 install -q --no-deps --require-hashes -r requirements/operator.txt
COPY --from=wheels /wheels /wheels
COPY --from=wheels /wheels-operator /wheels
RUN /build/bin/pip --python /app/bin/python3 install -q --no-deps --no-index /wheels/*.whl

# What every image has in common -------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
# A new volume takes owner and mode from the directory it is mounted on.
RUN mkdir -m 0700 /data /keys /keys/scheduler /keys/edge /keys/usage /keys/executors \
 && chown -R 65532:65532 /data /keys
COPY docker/init.py docker/probe.py /opt/patchbay/
ENV PATH=/app/bin:$PATH HOME=/data PATCHBAY_DATA_DIR=/data PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /data
USER 65532:65532
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.title="Patchbay" org.opencontainers.image.licenses="Apache-2.0"

# The images ---------------------------------------------------------------------------------------------------------
FROM runtime AS edge
COPY --from=edge-environment /app /app
EXPOSE 8080 8081 7000
ENTRYPOINT ["/app/bin/patchbay"]
CMD ["edge"]

FROM runtime AS scheduler
COPY --from=scheduler-environment /app /app
EXPOSE 7001 9101
ENTRYPOINT ["/app/bin/patchbay"]
CMD ["scheduler"]

FROM runtime AS executors
COPY --from=executors-environment /app /app
EXPOSE 7003 9103
ENTRYPOINT ["/app/bin/patchbay"]
CMD ["executors"]

FROM runtime AS usage
COPY --from=usage-environment /app /app
EXPOSE 7002 9102
ENTRYPOINT ["/app/bin/patchbay"]
CMD ["usage"]

FROM runtime AS operator
COPY --from=operator-environment /app /app
EXPOSE 9104
ENTRYPOINT ["/app/bin/patchbay-operator"]
CMD ["run"]

FROM runtime AS up
COPY --from=up-environment /app /app
EXPOSE 8080 8081
ENTRYPOINT ["/app/bin/patchbay"]
CMD ["up", "--host", "0.0.0.0"]

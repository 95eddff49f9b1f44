{{- define "patchbay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Name of a component's objects. Takes (list context component). */ -}}
{{- define "patchbay.component" -}}
{{- printf "%s-%s" (include "patchbay.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{- define "patchbay.selectorLabels" -}}
app.kubernetes.io/name: patchbay
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "patchbay.labels" -}}
{{ include "patchbay.selectorLabels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/part-of: patchbay
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- /* Image of a component. Takes (list context component). */ -}}
{{- define "patchbay.image" -}}
{{- $context := index . 0 -}}
{{- $own := (index $context.Values (index . 1)).image | default dict -}}
{{- $repository := $own.repository | default (printf "%s%s/%s" $context.Values.image.registry $context.Values.image.repository (index . 1)) -}}
{{- if $own.digest -}}
{{- printf "%s@%s" $repository $own.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($own.tag | default $context.Values.image.tag | default $context.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "patchbay.host" -}}
{{- $context := index . 0 -}}
{{- printf "%s.%s.svc.%s." (include "patchbay.component" .) $context.Release.Namespace $context.Values.clusterDomain -}}
{{- end -}}

{{- define "patchbay.roots" -}}
{{- .Values.secrets.existingRoots | default (printf "%s-roots" (include "patchbay.fullname" .)) -}}
{{- end -}}
{{- define "patchbay.clientKey" -}}
{{- .Values.secrets.existingClientKey | default (printf "%s-client-key" (include "patchbay.fullname" .)) -}}
{{- end -}}
{{- define "patchbay.managementKey" -}}
{{- .Values.secrets.existingManagementKey | default (printf "%s-management-key" (include "patchbay.fullname" .)) -}}
{{- end -}}
{{- define "patchbay.executorKeys" -}}
{{- printf "%s-executor-keys" (include "patchbay.fullname" .) -}}
{{- end -}}
{{- define "patchbay.redisSecret" -}}
{{- if .Values.redis.enabled -}}
{{- printf "%s-redis" (include "patchbay.fullname" .) -}}
{{- else -}}
{{- required "redis.existingSecret names a Secret with `url`, or set redis.enabled: true" .Values.redis.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "patchbay.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- printf "%s-tls" (include "patchbay.fullname" .) -}}
{{- else -}}
{{- fail "tls.enabled needs tls.existingSecret, a Secret with tls.crt, tls.key and ca.crt, or tls.certManager.enabled" -}}
{{- end -}}
{{- end -}}
{{- define "patchbay.tlsPluginSecret" -}}
{{- if .Values.tls.existingPluginSecret -}}
{{- .Values.tls.existingPluginSecret -}}
{{- else if and .Values.tls.certManager.enabled (not .Values.tls.existingSecret) -}}
{{- printf "%s-plugin-tls" (include "patchbay.fullname" .) -}}
{{- else -}}
{{- include "patchbay.tlsSecret" . -}}
{{- end -}}
{{- end -}}

{{- define "patchbay.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "patchbay.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Environment of every service. Takes (list context component). */ -}}
{{- define "patchbay.env" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
- {name: PATCHBAY_CONFIG, value: /config/patchbay.yaml}
- {name: PATCHBAY_INSTALLATION, value: {{ $context.Values.installation | quote }}}
- {name: PATCHBAY_DATA_DIR, value: /data}
- {name: LOG_FORMAT, value: json}
{{- if ne $component "executors" }}
- name: REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "patchbay.redisSecret" $context }}, key: url}}
{{- end }}
{{- if ne $component "operator" }}
- {name: PATCHBAY_SNAPSHOT_FROM, value: operator}
- {name: PATCHBAY_SCHEDULER_ADDRESS, value: "{{ include "patchbay.host" (list $context "scheduler") }}:7001"}
- {name: PATCHBAY_USAGE_ADDRESS, value: "{{ include "patchbay.host" (list $context "usage") }}:7002"}
- {name: PATCHBAY_EXECUTORS_ADDRESS, value: "{{ include "patchbay.host" (list $context "executors") }}:7003"}
{{- end }}
{{- if and $context.Values.tls.enabled (ne $component "operator") }}
- {name: PATCHBAY_TLS_DIR, value: /keys/tls}
- {name: PATCHBAY_TLS_NAME, value: {{ $context.Values.tls.serverName | quote }}}
{{- end }}
{{- with (index $context.Values $component).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Where pods may run: also those of hooks and of Redis. Takes the component's values. */ -}}
{{- define "patchbay.nodes" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Placement of a component's pods. */ -}}
{{- define "patchbay.placement" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $context.Values $component -}}
{{- with $context.Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - {name: {{ . | quote }}}
{{- end }}
{{- end }}
{{- include "patchbay.nodes" $values }}
{{- with $values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $values.topologySpreadConstraints }}
{{ toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "patchbay.selectorLabels" (list $context $component) | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* One Deployment. Takes (list context component extra), extra = dict with ports, env, mounts, volumes, probes; minReady = seconds after which callers know a new pod. */ -}}
{{- define "patchbay.deployment" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
{{- $extra := index . 2 -}}
{{- $values := index $context.Values $component -}}
{{- $tls := and $context.Values.tls.enabled (ne $component "operator") -}}
{{- if lt (int $values.terminationGracePeriodSeconds) (add (int $values.preStopSeconds) (int $values.drainSeconds) 15 | int) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d and must be at least preStopSeconds + drainSeconds + 15 = %d, or streams are cut at the end" $component (int $values.terminationGracePeriodSeconds) (add (int $values.preStopSeconds) (int $values.drainSeconds) 15 | int)) -}}
{{- end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "patchbay.component" (list $context $component) }}
  namespace: {{ $context.Release.Namespace }}
  labels: {{ include "patchbay.labels" (list $context $component) | nindent 4 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false $values) }}
  replicas: {{ $values.replicaCount }}
  {{- end }}
  revisionHistoryLimit: 3
  {{- with $extra.minReady }}
  minReadySeconds: {{ . }}
  {{- end }}
  selector:
    matchLabels: {{ include "patchbay.selectorLabels" (list $context $component) | nindent 6 }}
  strategy: {{ $extra.strategy | default (dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" "25%" "maxUnavailable" 0)) | toYaml | nindent 4 }}
  template:
    metadata:
      labels:
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- include "patchbay.labels" (list $context $component) | nindent 8 }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ $component }}
        {{- if $extra.rollOnConfig }}
        checksum/config: {{ include (print $context.Template.BasePath "/configmap.yaml") $context | sha256sum }}
        {{- end }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "patchbay.component" (list $context $component) }}
      automountServiceAccountToken: {{ $extra.token | default false }}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      securityContext: {{ include "patchbay.podSecurityContext" $context | nindent 8 }}
      {{- include "patchbay.placement" (list $context $component) | trim | nindent 6 }}
      containers:
        - name: {{ $component }}
          image: {{ include "patchbay.image" (list $context $component) }}
          imagePullPolicy: {{ $context.Values.image.pullPolicy }}
          {{- with $extra.args }}
          args: {{ toJson . }}
          {{- end }}
          env:
            {{- include "patchbay.env" (list $context $component) | nindent 12 }}
            {{- with $extra.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- range $name, $port := $extra.ports }}
            - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
            {{- end }}
          startupProbe:
            httpGet: {path: /livez, port: {{ $extra.health }}}
            periodSeconds: 1
            timeoutSeconds: 3
            failureThreshold: 120
          livenessProbe:
            httpGet: {path: /livez, port: {{ $extra.health }}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            {{- if and $extra.grpc (not $context.Values.tls.enabled) }}
            grpc: {port: {{ $extra.grpc }}}
            {{- else }}
            httpGet: {path: /readyz, port: {{ $extra.health }}}
            {{- end }}
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 3
          {{- if gt (int $values.preStopSeconds) 0 }}
          lifecycle:
            preStop: {sleep: {seconds: {{ $values.preStopSeconds }}}}
          {{- end }}
          resources: {{ toYaml $values.resources | nindent 12 }}
          securityContext: {{ include "patchbay.securityContext" $context | nindent 12 }}
          terminationMessagePolicy: FallbackToLogsOnError
          volumeMounts:
            - {name: config, mountPath: /config, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if not $extra.dataVolume }}
            - {name: data, mountPath: /data}
            {{- end }}
            {{- if $tls }}
            - {name: tls, mountPath: /keys/tls, readOnly: true}
            {{- end }}
            {{- with $extra.mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - {name: config, configMap: {name: {{ include "patchbay.fullname" $context }}-config}}
        - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
        {{- if not $extra.dataVolume }}
        - {name: data, emptyDir: {sizeLimit: 2Gi}}
        {{- end }}
        {{- if $tls }}
        - {name: tls, secret: {secretName: {{ include "patchbay.tlsSecret" $context }}, defaultMode: 288}}
        {{- end }}
        {{- with $extra.volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end -}}

{{- /* A volume of chosen root keys. Takes (list context roots). */ -}}
{{- define "patchbay.rootsVolume" -}}
- name: roots
  secret:
    secretName: {{ include "patchbay.roots" (index . 0) }}
    defaultMode: 288
    items:
      {{- range index . 1 }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end -}}

{{- define "patchbay.autoscaler" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
{{- $wish := (index $context.Values $component).autoscaling -}}
{{- if $wish.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "patchbay.component" . }}
  namespace: {{ $context.Release.Namespace }}
  labels: {{ include "patchbay.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "patchbay.component" . }}}
  minReplicas: {{ $wish.minReplicas }}
  maxReplicas: {{ $wish.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $wish.targetCPUUtilization }}}}
    {{- with $wish.targetOpenStreams }}
    - type: Pods
      pods:
        metric: {name: {{ eq $component "edge" | ternary "patchbay_edge_open_streams" "patchbay_plugin_open_streams" }}}
        target: {type: AverageValue, averageValue: {{ . | quote }}}
    {{- end }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 300
      policies: [{type: Pods, value: 1, periodSeconds: 120}]
{{- end }}
{{- end -}}

{{- define "patchbay.disruptionBudget" -}}
{{- $context := index . 0 -}}
{{- $values := index $context.Values (index . 1) -}}
{{- if and $context.Values.podDisruptionBudget.enabled (or (gt (int $values.replicaCount) 1) (dig "autoscaling" "enabled" false $values)) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "patchbay.component" . }}
  namespace: {{ $context.Release.Namespace }}
  labels: {{ include "patchbay.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{ include "patchbay.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "patchbay.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "patchbay.component" . }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels: {{ include "patchbay.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end -}}

{{- /* A headless Service: all addresses, health decides. Takes (list context component ports). */ -}}
{{- define "patchbay.headless" -}}
{{- $pair := list (index . 0) (index . 1) -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "patchbay.component" $pair }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels: {{ include "patchbay.labels" $pair | nindent 4 }}
spec:
  clusterIP: None
  selector: {{ include "patchbay.selectorLabels" $pair | nindent 4 }}
  ports:
    {{- range $name, $port := index . 2 }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
      protocol: TCP
      {{- if eq $name "grpc" }}
      appProtocol: kubernetes.io/h2c
      {{- end }}
    {{- end }}
{{- end -}}

{{- define "fedpipe.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fedpipe.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: serving
{{- end }}

{{- define "fedpipe.labels" -}}
{{ include "fedpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "fedpipe.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (printf "%s-serving" (include "fedpipe.name" .)) }}
{{- end }}

{{/* Settings of a container that Pod Security's level "restricted" requires. */}}
{{- define "fedpipe.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "fedpipe.options" -}}
- --host=0.0.0.0
- --port=8080
- --poll={{ .Values.serving.poll }}
- --sessions={{ .Values.serving.sessions }}
- --threads={{ .Values.serving.threads }}
- --batch={{ .Values.serving.batch }}
- --batch-delay={{ .Values.serving.batchDelay }}
- --body-limit={{ .Values.serving.bodyLimit }}
- --timeout={{ .Values.serving.timeout }}
- --drain={{ .Values.serving.drain }}
{{- if not .Values.serving.accessLog }}
- --no-access-log
{{- end }}
{{- end }}

{{/* Labels of objects that a federation's runs need; the argument is a list of the root and the part. */}}
{{- define "fedpipe.partLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "fedpipe.coreImage" -}}
{{ .Values.bucket.image }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "fedpipe.subjects" -}}
{{- range .Values.federation.operators }}
- kind: {{ .kind }}
  name: {{ .name }}
  {{- if eq .kind "ServiceAccount" }}
  namespace: {{ .namespace | default $.Release.Namespace }}
  {{- else }}
  apiGroup: rbac.authorization.k8s.io
  {{- end }}
{{- end }}
{{- end }}

{{/* Returns "true" if the chart's own Deployment serves, not KServe's objects. */}}
{{- define "fedpipe.serves" -}}
{{- if and .Values.serving.enabled (not .Values.kserve.enabled) }}true{{ end }}
{{- end }}

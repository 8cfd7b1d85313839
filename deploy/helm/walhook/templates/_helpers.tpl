{{- define "walhook.name" -}}
{{- /* 63 characters at most, also with -init. */}}
{{- if contains "walhook" .Release.Name }}{{ .Release.Name | trunc 58 | trimSuffix "-" }}{{ else }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}-walhook{{ end }}
{{- end }}

{{- define "walhook.selector" -}}
app.kubernetes.io/name: walhook
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "walhook.labels" -}}
{{ include "walhook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "walhook.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "walhook.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65534
runAsGroup: 65534
fsGroup: 65534
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "walhook.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

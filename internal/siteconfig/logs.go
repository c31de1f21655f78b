package siteconfig

import (
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

// UnredactedLogs returns the names of the loggers of a site whose lines some log
// writes without the log format. The core is that of all HTTP logs.
func UnredactedLogs(core zapcore.Core, config *caddyhttp.ServerLogConfig, site string) (names []string) {
	return append(unredacted(core, []zapcore.Entry{
		{Level: zapcore.ErrorLevel, LoggerName: "http.log.error"}, // the line of an error has the request
		{Level: zapcore.DebugLevel, LoggerName: "http.handlers.reverse_proxy"},
	}), UnredactedAccessLogs(core, config, site)...)
}

// UnredactedAccessLogs is UnredactedLogs for the access logs alone.
func UnredactedAccessLogs(core zapcore.Core, config *caddyhttp.ServerLogConfig, site string) []string {
	var lines []zapcore.Entry
	for host := range strings.FieldsSeq(site) {
		for _, name := range accessLogs(config, host) {
			lines = append(lines, zapcore.Entry{Level: zapcore.InfoLevel, LoggerName: strings.TrimSuffix("http.log.access."+name, ".")})
		}
	}
	return unredacted(core, lines)
}

// unredacted returns the names of the loggers of lines that some log writes without the
// log format.
func unredacted(core zapcore.Core, lines []zapcore.Entry) (names []string) {
	for _, line := range lines {
		if !slices.Contains(names, line.LoggerName) && writesUnredacted(core, line) {
			names = append(names, line.LoggerName)
		}
	}
	return names
}

// accessLogs returns the names of the access logs of a host, as
// ServerLogConfig chooses them.
func accessLogs(config *caddyhttp.ServerLogConfig, host string) []string {
	if config == nil || slices.Contains(config.SkipHosts, host) {
		return nil
	}
	if names, ok := config.LoggerNames[host]; ok {
		return names
	}
	labels := strings.Split(host, ".")
	for i := range labels {
		labels[i] = "*"
		if names, ok := config.LoggerNames[strings.Join(labels, ".")]; ok {
			return names
		}
	}
	if config.SkipUnmappedHosts {
		return nil
	}
	return []string{config.DefaultLoggerName}
}

// writesUnredacted reports whether a log that a core consists of would write a line
// without redacting it.
func writesUnredacted(core zapcore.Core, line zapcore.Entry) bool {
	// The type of several cores together, which zapcore does not export.
	if cores := reflect.ValueOf(core); cores.Kind() == reflect.Slice {
		for i := range cores.Len() {
			if one, ok := reflect.TypeAssert[zapcore.Core](cores.Index(i)); ok && writesUnredacted(one, line) {
				return true
			}
		}
		return false
	}
	if core.Check(line, nil) == nil {
		return false
	}
	probe := new(redact.Probe)
	core.With([]zapcore.Field{probe.Field()}) // encodes the field and writes nothing
	return probe.Redacted < probe.Encoders
}

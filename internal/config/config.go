// Package config reads the environment, once, at start.
//
//	variables  the table: every variable, its default, what it means
//	environ    where a value comes from: the environment, a file, the default
//	values     from text to Go
//	connection from a connection string to what pgx connects with
//	bounds     what makes no sense, and what makes no sense together
//	problems   what to tell an operator
//
// It names everything that is wrong at once, and never prints a secret. It
// connects to nothing.
package config

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"reflect"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// Config is what the environment says, checked. It redacts itself in logs.
type Config struct {
	DatabaseURL    Secret `env:"WALHOOK_DATABASE_URL"`    // "": libpq's PG* say it, which pgx reads by itself
	ReplicationURL Secret `env:"WALHOOK_REPLICATION_URL"` // the same as DatabaseURL where it is not given
	Slot           string `env:"WALHOOK_SLOT"`
	Schema         string `env:"WALHOOK_SCHEMA"` // "": the first of the search_path
	AutoInit       bool   `env:"WALHOOK_AUTO_INIT"`

	AdminAddr  string `env:"WALHOOK_ADMIN_ADDR"`  // "": no admin server
	AdminToken Secret `env:"WALHOOK_ADMIN_TOKEN"` // see AdminTokens

	AdminTLSCertFile string `env:"WALHOOK_ADMIN_TLS_CERT_FILE"` // "": no TLS
	AdminTLSKeyFile  string `env:"WALHOOK_ADMIN_TLS_KEY_FILE"`

	ParkAfter        time.Duration `env:"WALHOOK_PARK_AFTER"`
	MaxInFlight      int           `env:"WALHOOK_MAX_IN_FLIGHT"`
	Window           int           `env:"WALHOOK_WINDOW"`
	MaxMemory        Size          `env:"WALHOOK_MAX_MEMORY"`
	EndpointInFlight int           `env:"WALHOOK_ENDPOINT_IN_FLIGHT"`
	Timeout          time.Duration `env:"WALHOOK_TIMEOUT"`
	RetrySchedule    Schedule      `env:"WALHOOK_RETRY_SCHEDULE"` // empty: one attempt
	DisableAfter     time.Duration `env:"WALHOOK_DISABLE_AFTER"`  // 0: never

	UserAgent  string `env:"WALHOOK_USER_AGENT"`
	AllowHTTP  bool   `env:"WALHOOK_ALLOW_HTTP"`
	AllowPorts Ports  `env:"WALHOOK_ALLOW_PORTS"` // never nil
	AllowNets  Nets   `env:"WALHOOK_ALLOW_NETS"`
	DenyNets   Nets   `env:"WALHOOK_DENY_NETS"`
	CAFile     string `env:"WALHOOK_CA_FILE"`   // see RootCAs
	ProxyURL   Secret `env:"WALHOOK_PROXY_URL"` // see Proxy
	SecretKey  Key    `env:"WALHOOK_SECRET_KEY"`
	OldKey     Key    `env:"WALHOOK_SECRET_KEY_OLD"`

	MaxEndpoints   int           `env:"WALHOOK_MAX_ENDPOINTS"` // of one organization
	Retention      time.Duration `env:"WALHOOK_RETENTION"`
	RecoveryWindow time.Duration `env:"WALHOOK_RECOVERY_WINDOW"`
	Environment    string        `env:"WALHOOK_ENVIRONMENT"`

	LogLevel  slog.Level `env:"WALHOOK_LOG_LEVEL"`
	LogFormat string     `env:"WALHOOK_LOG_FORMAT"` // "json" or "text"

	databaseFile, replicationFile string   // to be read again before each connection; "": the values are above
	dropped                       []string // see Dropped
	rootCAs                       *x509.CertPool
}

// Load reads the configuration out of an environment in the form of os.Environ.
// The error is a Problems with everything that is wrong.
func Load(env Environ) (*Config, error) {
	l := &loader{env: env}
	c := new(Config)
	l.decode(c)
	l.connections(c)
	l.bounds(c)
	l.together(c)
	l.unknown()
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return c, nil
}

// AdminURL returns where the admin server of this machine is reached, "" if there is none; a
// health check needs to know nothing else.
func AdminURL(env Environ) (string, error) {
	l := &loader{env: env}
	c := new(Config)
	c.AdminAddr, _ = l.lookup("WALHOOK_ADMIN_ADDR")
	c.AdminToken = "not looked at"
	l.adminAddr(c)
	if len(l.problems) > 0 {
		return "", l.problems
	}
	if c.AdminAddr == "" {
		return "", nil
	}
	scheme := "http"
	if _, encrypted := env.set("WALHOOK_ADMIN_TLS_CERT_FILE"); encrypted {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(c.AdminAddr) // adminAddr has split it before
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// LogFormat returns the format of the log and whether it was chosen; for what has to be
// said where the configuration cannot be used.
func LogFormat(env Environ) (format string, chosen bool) {
	format, chosen = env.set("WALHOOK_LOG_FORMAT")
	if chosen = chosen && (format == "json" || format == "text"); !chosen {
		v, _ := variable("WALHOOK_LOG_FORMAT")
		format = v.Default
	}
	return format, chosen
}

// Proxy returns the egress proxy; nil: none.
func (c *Config) Proxy() *url.URL {
	if c.ProxyURL == "" {
		return nil
	}
	u, err := url.Parse(string(c.ProxyURL))
	if err != nil {
		return nil // bounds has parsed it before
	}
	return u
}

// LogValue lists every variable, without the secrets.
func (c *Config) LogValue() slog.Value {
	var attrs []slog.Attr
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		if !v.Type().Field(i).IsExported() {
			continue
		}
		attrs = append(attrs, slog.String(v.Type().Field(i).Tag.Get("env"), fmt.Sprint(v.Field(i).Interface())))
	}
	return slog.GroupValue(attrs...)
}

// A loader collects what is wrong on the way.
type loader struct {
	env      Environ
	problems Problems
}

// decode sets every field. envconfig stops at the first error, so that it is
// given one field at a time; one whose text is wrong gets its default, so that
// the checks that follow can go on.
func (l *loader) decode(c *Config) {
	config := reflect.ValueOf(c).Elem()
	for i := range config.NumField() {
		field := config.Type().Field(i)
		if !field.IsExported() {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
		if err := l.process(one, envconfig.LookuperFunc(l.lookup)); err != nil {
			l.wrong(field.Tag.Get("env"), "%s", notA(field.Type, err))
			one.Elem().SetZero()
			if err := l.process(one, envconfig.LookuperFunc(lookupDefault)); err != nil {
				panic(err) // a default that is wrong
			}
		}
		config.Field(i).Set(one.Elem().Field(0))
	}
}

func (l *loader) process(target reflect.Value, lookup envconfig.Lookuper) error {
	return envconfig.ProcessWith(context.Background(), &envconfig.Config{Target: target.Interface(), Lookuper: lookup})
}

// notA says what a text is not. The errors of strconv and time speak to programmers.
func notA(t reflect.Type, err error) string {
	if wrong, ok := errors.AsType[wrongValue](err); ok {
		return string(wrong)
	}
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "not a duration: a number with a unit, ms, s, m or h"
	case reflect.TypeFor[int]():
		return "not a whole number"
	case reflect.TypeFor[bool]():
		return "neither true nor false"
	case reflect.TypeFor[slog.Level]():
		return "not a level: debug, info, warn or error"
	default:
		return "cannot be read"
	}
}

// Package siteconfig reads the configs of Caddy: before they are provisioned, as JSON, and after it,
// as servers and routes.
package siteconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// AppID is the name of this module's app.
const AppID = "signed_playback"

// Adapt reads a config file as `caddy run` does.
func Adapt(file string) (config map[string]any, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--config: %w; name the config of the server, like --config /etc/caddy/Caddyfile", err)
	}
	if filepath.Ext(file) != ".json" {
		if raw, _, err = caddyconfig.GetAdapter("caddyfile").Adapt(raw, map[string]any{"filename": file}); err != nil {
			return nil, fmt.Errorf("--config %q: %w", file, err)
		}
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("--config %q: %w", file, err)
	}
	dropIDs(config)
	return config, nil
}

// dropIDs removes the members that only the admin API reads.
func dropIDs(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "@id")
		for _, element := range value {
			dropIDs(element)
		}
	case []any:
		for _, element := range value {
			dropIDs(element)
		}
	}
}

// HTTPServers returns the http app of a config, and its servers.
func HTTPServers(config map[string]any) (app map[string]any, servers []map[string]any, err error) {
	apps, _ := config["apps"].(map[string]any)
	app, _ = apps["http"].(map[string]any)
	named, _ := app["servers"].(map[string]any)
	for _, value := range named {
		server, ok := value.(map[string]any)
		if !ok {
			return nil, nil, errors.New("a server of the http app is not an object")
		}
		servers = append(servers, server)
	}
	return app, servers, nil
}

// Isolate removes from a config everything that listens or obtains certificates.
func Isolate(config map[string]any) error {
	app, servers, err := HTTPServers(config)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return errors.New("the config has no site, so no gate")
	}
	kept := map[string]any{"http": app}
	apps, _ := config["apps"].(map[string]any)
	if own, ok := apps[AppID]; ok {
		kept[AppID] = own
	}
	config["apps"], config["admin"] = kept, map[string]any{"disabled": true}
	for _, s := range servers {
		for _, name := range []string{"listener_wrappers", "packet_conn_wrappers", "tls_connection_policies"} {
			delete(s, name)
		}
		s["automatic_https"] = map[string]any{"disable": true}
	}
	return nil
}

// Provision provisions a config without starting it. It returns its http app and the app of this
// module.
func Provision(file string, config map[string]any) (server *caddyhttp.App, app any, err error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, nil, err
	}
	var cfg caddy.Config
	err = caddy.StrictUnmarshalJSON(raw, &cfg)
	var ctx caddy.Context
	if err == nil {
		ctx, err = caddy.ProvisionContext(&cfg)
	}
	var http any
	if err == nil {
		http, err = ctx.App("http")
	}
	if err == nil {
		app, err = ctx.App(AppID)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return http.(*caddyhttp.App), app, nil
}

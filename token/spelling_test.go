package token_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// restricting are the claims that a gate reads. A claim that is nearly one of
// them would be ignored, and the token would open what it was to close.
var restricting = []string{
	"sub", "exp", "nbf", "kid", "accessRules", "downloadable", "aud", "iss",
	"jti", "iat", "uid", "climit", "startBy", "flags",
}

// parseClaim parses a token with one claim more. name is the JSON of its name.
func parseClaim(name string) error {
	_, err := token.Parse(b64(goodHeader) + "." + b64(`{"sub":"demo",`+name+`:[{"type":"any","action":"block"}],"exp":1800003600}`) + ".")
	return err
}

// The attack, most often a typing error: a signed claim is ignored because of
// its spelling, so the token is valid earlier, longer or for more viewers than
// its signer meant.
func TestMisspeltClaims(t *testing.T) {
	t.Parallel()
	for _, claim := range restricting {
		for _, name := range misspelt(claim) {
			for _, quoted := range []string{string(must(json.Marshal(name))), escaped(name)} {
				if err := parseClaim(quoted); !errors.Is(err, token.ErrMalformed) {
					t.Errorf("a claim %s beside %s: %v", quoted, claim, err)
				}
			}
		}
	}
	for _, name := range []string{
		"accessrules", "NBF", "access_rules", "start-by", "acessRules", "accessRule", "downloadablle", "notBefore", "not_before",
		"ACCESS.RULES", " exp", "$uid", "c-limit", "ſub", "\u212aid", "access\u200bRules", "aссessRules", "n\u0411f", "jt\u0131", "＿ｎｂｆ", "жlжmжt",
	} {
		refuse(t, forge(goodHeader, fmt.Sprintf(`{"sub":"demo","exp":1800003600,%q:1}`, name)), token.ErrMalformed)
	}
	for _, flag := range []string{"Original", "orignal", "ORIGINAL", "original_", "orig\\u0131nal"} {
		refuse(t, forge(goodHeader, `{"sub":"demo","exp":1800003600,"flags":{"x":1,"`+flag+`":true,"y":2}}`), token.ErrMalformed)
	}
}

// misspelt returns names that are not the claim, though a reader takes them for
// it.
func misspelt(claim string) (names []string) {
	toggle := func(r rune) rune { return r ^ 0x20 }
	wide := func(r rune) rune { return r - '!' + '！' }
	bold := func(r rune) rune { return '\U0001d41a' + (r | 0x20) - 'a' } // mathematical letters
	for _, change := range []func(rune) rune{toggle, wide, bold, func(r rune) rune { return wide(toggle(r)) }} {
		names = append(names, strings.Map(change, claim))
	}
	typos := ""
	if len(claim) >= 5 {
		typos = "aezZ19"
	}
	for i, r := range claim {
		before, after := claim[:i], claim[i+1:]
		for _, other := range []rune{toggle(r), wide(r), bold(r), 'ж', '字'} {
			names = append(names, before+string(other)+after)
		}
		for _, extra := range "_- .:/#\u00a0\u00ad\u200b\u200d\u2060\ufeff\u0301\ufe0f\u202e\x00\t＿‐" + typos {
			names = append(names, before+string(extra)+claim[i:], before+string(r)+string(extra)+after)
		}
		if i+1 < len(claim) && after[0] != claim[i] {
			names = append(names, before+after[:1]+string(r)+after[1:])
		}
		for _, typo := range typos {
			names = append(names, before+after, before+string(typo)+after)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == claim })
}

// escaped returns the JSON of a name with an escape for each code unit.
func escaped(name string) string {
	var quoted strings.Builder
	for _, unit := range utf16.Encode([]rune(name)) {
		fmt.Fprintf(&quoted, `\u%04x`, unit)
	}
	return `"` + quoted.String() + `"`
}

// The gate ignores the claims of other programs: the claims registered for JSON Web
// Tokens, and the claims of common identity providers.
func TestOtherClaims(t *testing.T) {
	t.Parallel()
	names := strings.Fields(`
		name given_name family_name middle_name nickname preferred_username profile picture website email email_verified gender
		birthdate zoneinfo locale phone_number phone_number_verified address updated_at azp nonce auth_time at_hash c_hash acr amr
		sub_jwk cnf sip_from_tag sip_date sip_callid sip_cseq_num sip_via_branch orig dest mky events toe txn rph sid vot vtm attest
		origid act scope client_id may_act jcard at_use_nbr div opt vc vp sph ace_profile cnonce exi roles groups entitlements
		token_introspection eat_nonce ueid sueids oemid hwmodel hwversion oemboot dbgstat location eat_profile submods uptime bootcount
		bootseed dloas swname swversion manifests measurements measres intuse cdniv cdnicrit cdniip cdniuc cdniets cdnistt cdnistd
		sig_val_claims authorization_details verified_claims place_of_birth nationalities birth_family_name birth_middle_name
		salutation title msisdn also_known_as htm htu ath atc sub_id rcd rcdi crn msgi _claim_names _claim_sources geohash _sd ...
		_sd_alg sd_hash consumerPlmnId vct vct#integrity status status_list iat_hash
		aio appid appidacr idp idtyp in_corp ipaddr oid onprem_sid puid pwd_exp pwd_url rh scp tid unique_name upn uti ver wids xms_cc
		xms_tcdt hasgroups ctry fwd verified_primary_email
		hd firebase user_id cognito:username cognito:groups token_use event_id origin_jti jti_origin
		ref sha repository repository_owner actor workflow job_workflow_ref runner_environment namespace_id project_path pipeline_id
		kubernetes.io cid tfp emails newUser extension_plan nonce_supported real_user_status attributes entitlement plan quota
		realm_access resource_access session_state allowed-origins typ org_id permissions https://example.com/roles
		role uuid guid user uid_number subject expires_in video season limits tags start startsAt starts_at stop access access_token rules
		startedBy accessRulesV2 uid2 жlжжжt download downloads downloadUrl limitless issuer audience key kind ids user-id x a b é имя 姓名 prénom größe`)
	for _, name := range append(names, "aud", "iss", "flags") {
		if err := parseClaim(string(must(json.Marshal(name)))); err != nil {
			t.Errorf("a claim %q: %v", name, err)
		}
	}
	accept(t, forge(goodHeader, `{"sub":"demo","exp":1800003600,"flags":{"original":true,"HLS":1},"x":{"NBF":1}}`))
}

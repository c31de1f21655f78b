// The first Worker under "Customize default restrictions" of Cloudflare Stream's
// page "Secure your stream", as it stands there. The test fills in the account,
// the video and the host.

addEventListener('fetch', event => {
    event.respondWith(handleRequest(event))

})

async function handleRequest(request) {
    var signed_url_restrictions = {
        //limit viewing for the next 12 hours
        exp: Math.floor(Date.now() / 1000) + (12*60*60)
    };
    const init = {
    method: 'POST',
    headers: {
              "X-Auth-Email": "{ACCOUNT_EMAIL}",
              "X-Auth-Key": "{ACCOUNT_KEY}",
              "content-type": "application/json;charset=UTF-8"
    },
    body: JSON.stringify(signed_url_restrictions)
  }
  const signedurl_service_response = await fetch("https://api.cloudflare.com/client/v4/accounts/{ACCOUNT_ID}/stream/{VIDEO_ID}/token", init)
  return new Response(JSON.stringify(await signedurl_service_response.json()), {status: 200})

}

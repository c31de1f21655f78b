# With ruby-jwt: gem install jwt, or apt-get install ruby-jwt
# Run it beside key.json: ruby sign.rb <video> <viewer>
require 'json'
require 'jwt'

key = JSON.parse(File.read('key.json'))
private_key = OpenSSL::PKey::RSA.new(key['pem'].unpack1('m'))

video, viewer = ARGV
now = Time.now.to_i
claims = { sub: video, uid: viewer, iat: now, exp: now + 12 * 60 * 60 }
token = JWT.encode(claims, private_key, 'RS256', { kid: key['id'] })
puts "https://media.example.com/#{token}/manifest/video.m3u8"

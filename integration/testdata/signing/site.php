<?php
// A Laravel site with PlaybackController.php: prints what a visitor and what the user 7 get.
require 'Illuminate/autoload.php';
require 'PlaybackController.php';

use App\Http\Controllers\PlaybackController;
use Illuminate\Auth\GenericUser;
use Illuminate\Auth\Middleware\Authenticate;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Contracts\Http\Kernel as HttpKernel;
use Illuminate\Foundation\Application;
use Illuminate\Foundation\Exceptions\Handler;
use Illuminate\Foundation\Http\Kernel;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Auth;
use Illuminate\Support\Facades\Facade;
use Illuminate\Support\Facades\Route;

foreach (['config', 'bootstrap/cache', 'storage/logs'] as $folder) {
    mkdir($folder, 0700, true);
}
foreach ([
    'app' => ['key' => 'base64:' . base64_encode(random_bytes(32)), 'cipher' => 'AES-256-CBC', 'timezone' => 'UTC', 'providers' => [
        Illuminate\Auth\AuthServiceProvider::class, Illuminate\Filesystem\FilesystemServiceProvider::class, Illuminate\View\ViewServiceProvider::class,
    ]],
    'auth' => ['defaults' => ['guard' => 'web'], 'guards' => ['web' => ['driver' => 'header']]],
    'logging' => ['default' => 'errorlog', 'channels' => ['errorlog' => ['driver' => 'errorlog']]],
    'view' => ['paths' => [], 'compiled' => 'storage'],
    'services' => ['signed_playback' => ['key_file' => 'key.json', 'url' => 'https://media.example.com']],
] as $name => $config) {
    file_put_contents("config/$name.php", '<?php return ' . var_export($config, true) . ';');
}

class SiteKernel extends Kernel
{
    protected $routeMiddleware = ['auth' => Authenticate::class];
}

$app = new Application(getcwd());
$app->singleton(HttpKernel::class, SiteKernel::class);
$app->singleton(ExceptionHandler::class, Handler::class);
$app->booted(function () {
    Auth::viaRequest('header', fn ($request) => $request->header('X-User') ? new GenericUser(['id' => $request->header('X-User')]) : null);
    Route::get('/playback/{video}', PlaybackController::class)->middleware('auth');
});
$get = fn ($headers) => $app->make(HttpKernel::class)->handle(Request::create('/playback/demo', 'GET', [], [], [], $headers + ['HTTP_ACCEPT' => 'application/json']));
echo 'visitor: ', $get([])->getStatusCode(), "\n";
$answer = $get(['HTTP_X_USER' => '7']);
echo 'user: ', $answer->headers->get('Cache-Control'), ' ', json_decode($answer->getContent())->url ?? $answer->getContent(), "\n";

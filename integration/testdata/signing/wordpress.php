<?php
// Loads WordPress from the folder wordpress, with signed-playback.php as a plugin that is always on, and prints what
// a visitor and what the user 7 get. Nothing here needs a database: db.php answers each query with no rows.
file_put_contents('wordpress/wp-content/db.php', <<<'PHP'
<?php
class EmptyDatabase extends wpdb
{
    public function __construct() { $this->charset = 'utf8mb4'; $this->ready = true; }
    public function db_connect($allow_bail = true) { return true; }
    public function query($query) { $this->last_result = []; return 0; }
    public function _real_escape($data) { return addslashes($data); }
    public function get_col_charset($table, $column) { return false; }
}
$wpdb = new EmptyDatabase();
PHP);
mkdir('wordpress/wp-content/mu-plugins');
rename('signed-playback.php', 'wordpress/wp-content/mu-plugins/signed-playback.php');
file_put_contents('wordpress/wp-config.php', '<?php $table_prefix = "wp_"; require ABSPATH . "wp-settings.php";');

define('WP_INSTALLING', true); // without tables, WordPress would ask to be installed
define('SIGNED_PLAYBACK_KEY_FILE', 'key.json');
define('SIGNED_PLAYBACK_URL', 'https://media.example.com');
$_SERVER += ['HTTP_HOST' => 'www.example.com', 'SERVER_PROTOCOL' => 'HTTP/1.1'];
require 'wordpress/wp-load.php';

echo 'visitor: ', do_shortcode('[signed_playback video="demo"]'), "\n";
wp_set_current_user(7);
$user = wp_get_current_user();
$user->ID = 7;
echo 'user: ', do_shortcode('[signed_playback video="demo"]'), DONOTCACHEPAGE ? ' not cached' : '', "\n";

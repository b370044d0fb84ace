/** Load what the page shows while the modules that draw it are on their way. */
import { route } from "./router.js";
import { start } from "./store.js";

if (route.value.page !== "login") start();

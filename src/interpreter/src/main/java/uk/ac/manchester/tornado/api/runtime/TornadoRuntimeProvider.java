package uk.ac.manchester.tornado.api.runtime;

import uk.ac.manchester.tornado.api.TornadoRuntime;
import uk.ac.manchester.tornado.api.interpreter.Interpreter;

/** Provides the runtime. */
public class TornadoRuntimeProvider {
    public TornadoRuntimeProvider() {}

    public static TornadoRuntime getTornadoRuntime() {
        return Interpreter.RUNTIME;
    }

    public static void setProperty(String key, String value) {
        System.setProperty(key, value);
    }

    public static String getProperty(String key, String defaultValue) {
        return System.getProperty(key, defaultValue);
    }

    public static String getProperty(String key) {
        return System.getProperty(key);
    }
}

/** Devices and their capabilities, the implementation of TornadoVM's API in this JVM, and host memory. */
@NullMarked
package org.tornadomoe.tornado.device;

import org.jspecify.annotations.NullMarked;

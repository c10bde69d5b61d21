/** NVIDIA's driver, kernels in a device's own language, and runs of them on TornadoVM's streams. */
@NullMarked
package org.tornadomoe.tornado.cuda;

import org.jspecify.annotations.NullMarked;
